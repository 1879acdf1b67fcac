"""A policy as a service: HTTP server, messages, and a client that stands alone."""
