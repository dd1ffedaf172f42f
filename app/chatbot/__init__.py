"""The chatbot: streams a model's answers and keeps them. Entry points: `factory`, `wsgi`, `__main__`."""
