"""The chatbot: a Flask application that streams a model's answers and keeps them. Entry points: `factory`, `wsgi`, `__main__`."""
