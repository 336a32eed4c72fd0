"""Speech to text over HTTP with SenseVoiceSmall."""

from __future__ import annotations

__version__ = "0.1.0"
