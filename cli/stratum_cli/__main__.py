import sys

from stratum_cli.main import main

sys.exit(main())
