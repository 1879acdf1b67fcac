"""OpenVLA: two vision towers, a projector and Llama, reading and writing the published layout."""
