"""A small shop: an order charges a card, reserves stock and sends a receipt, each a task of its own.

``shop.app`` is the application on unlost, ``shop.plain`` the same on plain Celery defaults.
"""
