"""Adapters: models of diffusers behind the project's own interfaces."""
