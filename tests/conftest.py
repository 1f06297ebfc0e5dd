"""Which tests are for `make slow`, though they take seconds: all others together take minutes enough."""

from __future__ import annotations

import pytest

LONGER = "tests/runs/test_longer.py::test_it_is_what_a_run_of_so_many_cycles_would_have_been"
LONG = (
    *(f"tests/test_docs.py::test_commands_and_snippets_of_a_page_in_order[{page}]" for page in ("running", "compare")),
    *(
        f"tests/test_docs.py::test_commands_and_snippets_of_a_page_in_order[{page}]"
        for page in ("own-protocol", "images-over-classes")
    ),
    "tests/contact/test_fuzz_plans.py::test_plans_elements_and_scenarios[network always on]",
    "tests/runs/test_longer.py::test_again_and_a_kill_at_any_line_of_it_change_nothing",
    f"{LONGER}[aligned, contacts that overlap and are cut off]",
    "tests/method/test_clients.py::test_a_resumed_run_ends_with_the_same_bytes[plan1]",
    "tests/runs/test_run.py::test_kill_9_at_any_instant_then_resume_is_identical[merge]",
    "tests/runs/test_run.py::test_kill_9_at_any_instant_then_resume_is_identical[frozen layers]",
    "tests/cli/test_compare.py::test_killed_and_resumed_it_ends_as_if_nothing_had_been",
    "tests/peer/test_shaped_by_the_kernel.py::test_a_network_behind_a_link_of_the_kernel_answers_as_fast_as_it_carries",
    "tests/test_make_fuzz.py::test_a_few_mutations_of_every_reader",
    "tests/deploy/test_networked_nodes.py::test_a_network_over_nodes_is_that_of_the_simulation[fedsc, federated]",
    "tests/deploy/test_networked_nodes.py::test_a_server_that_is_killed_goes_on_with_what_clients_had_told[60]",
)
"""`.ci/run` runs the pages of the docs too."""


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.nodeid in LONG:
            item.add_marker(pytest.mark.slow)
