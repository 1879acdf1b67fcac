"""A policy as a service: HTTP server, messages, and a self-contained client."""
