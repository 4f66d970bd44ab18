"""Adaptive inference and function vectors."""
