"""Bounded searches for inputs that break something: ``make fuzz``."""
