"""Alignment: velocities wrapped in velocities, and what moves samples towards reward."""
