"""The remote code that every Jais release on Hugging Face carries; it imports nothing but torch and transformers."""
