def pytest_addoption(parser):
    parser.addoption("--published", metavar="PATH", help="a checkout of the authors' code, to measure beside ours")
