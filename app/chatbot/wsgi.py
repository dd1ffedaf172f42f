"""What gunicorn serves."""

from chatbot.factory import create_app
from chatbot.settings import load_settings

app = create_app(load_settings())
