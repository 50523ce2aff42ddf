"""``accelerate launch finetune``: the same command as ``accelerate launch -m emformer_hub.training``."""

from emformer_hub.training.__main__ import main

if __name__ == "__main__":
    main()
