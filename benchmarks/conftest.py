from shortcutrl._processes import cores


def pytest_benchmark_update_machine_info(machine_info):
    machine_info["cpu"]["count"] = cores()  # those that this process may use


def pytest_addoption(parser):
    parser.addoption("--sorl", metavar="PATH", help="a checkout of the SORL authors' code, measured too")
    parser.addoption("--fql", metavar="PATH", help="a checkout of flow Q-learning's code, measured too")
