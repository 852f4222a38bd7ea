"""The page of `quicksviewer demo`: python playground/demo.py --model-path DIR"""

import sys

from quicksviewer.serve.page_server import main

if __name__ == "__main__":
    sys.exit(main())
