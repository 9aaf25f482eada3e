"""The remote code that every Jais release on Hugging Face carries; it imports nothing but torch and transformers.

What only this package needs does not belong here, since each file is copied into releases.
"""
