"""Tools that measure the service; nothing here is part of it."""
