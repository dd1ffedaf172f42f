"""Backups of the chatbot with restic: made, verified, restored, rehearsed. Standard library only; Python 3.11."""
