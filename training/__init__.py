"""How the bundled demo model is made and measured."""
