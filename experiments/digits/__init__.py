"""The main job: a one-step generator of scikit-learn's digits."""
