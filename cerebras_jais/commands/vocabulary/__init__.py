"""`vocab` and `tokens`: one module for each verb of `vocab`, and the group of them."""
