"""The conductor: recipe, data, network, losses, the training loop and the order of the stages."""
