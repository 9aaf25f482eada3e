"""The sample corpus: original Arabic, English and code texts, one JSON object per line."""
