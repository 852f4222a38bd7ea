"""The whole example of quicksviewer.qwen_vl_finetune: --mode training, inference or custom."""

import sys

from quicksviewer.qwen_vl_finetune.example import main

if __name__ == "__main__":
    sys.exit(main())
