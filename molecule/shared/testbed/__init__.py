"""Test hosts: systemd containers that behave like a VPS, and the outside parties that a VPS talks to.

One implementation for every Molecule scenario and for the demo. See molecule/shared/README.md.
"""
