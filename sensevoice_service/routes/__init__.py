"""The HTTP side: the only part of the service, with api.py, that knows fastapi."""
