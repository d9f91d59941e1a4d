"""Adapters: models of diffusers and transformers behind the project's own interfaces."""
