def pytest_addoption(parser):
    parser.addoption("--published", metavar="PATH", help="a checkout of SORL's authors' code, to measure beside ours")
    parser.addoption("--fql", metavar="PATH", help="a checkout of flow Q-learning's code, to measure beside ours")
