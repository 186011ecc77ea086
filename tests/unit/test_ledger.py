"""What a walk reads of the ledger when it starts."""

from random import Random

from cluster.groups import prompt_index
from cluster.ledger import UNLABELLED, USED, Ledger, LedgerRow


def row(group_id: int, step: int, *, status: str = USED, num_samples: int = 4) -> LedgerRow:
    return LedgerRow(
        group_id=group_id, status=status, step=step, attempts=1, engine="engine-0",
        oldest_version=0, newest_version=0, num_samples=num_samples, num_tokens=9,
    )  # fmt: skip


def test_progress_is_the_groups_used_and_the_labels_of_each_step(tmp_path):
    ledger = Ledger(tmp_path)
    assert ledger.progress() == (set(), {})
    ledger.commit(1, [row(0, 1), row(1, 1, num_samples=2)])
    ledger.commit(2, [row(3, 2), row(2, 2, status=UNLABELLED)])
    assert ledger.progress() == ({0, 1, 2, 3}, {1: 6, 2: 4})


def test_each_epoch_runs_through_all_prompts_in_an_order_of_its_own():
    epochs = [[prompt_index(10 * epoch + k, 10, 3) for k in range(10)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    order = list(range(10))
    Random("3-1").shuffle(order)
    assert epochs[1] == order, "runs that were begun before would draw other prompts"
