"""Results of lm_eval beside the scores of the model card: a report in Markdown, or as one HTML page.

`results` reads what lm_eval writes, `card` has the card's columns and numbers, `compare` says where two numbers can be
told apart, `samples` picks questions answered right and wrong; `markdown`, `page` and `plot` write it down. Nothing is
evaluated here, and lm_eval is not imported.
"""
