"""What a trained model can do: text it writes, and how well it predicts text it has not seen."""
