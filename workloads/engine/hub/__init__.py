"""The Hugging Face hub: files, accounts, pushes."""
