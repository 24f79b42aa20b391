"""Why a policy does what it does: figures, pictures, and what to do about it."""
