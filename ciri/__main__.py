import sys

from ciri.cli import main

sys.exit(main())
