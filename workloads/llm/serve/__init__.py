"""A language model behind the OpenAI chat API: by transformers' own server, or by vLLM's."""
