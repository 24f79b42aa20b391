"""The acting wing: a policy file in, actions out. A robot needs numpy and safetensors only."""
