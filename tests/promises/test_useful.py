"""Promise 8: with defaults HGP and Hutchinson align domains and cost no accuracy on the sources."""

from pathlib import Path

import fedhess


def test_defaults_align_at_no_loss_of_accuracy_on_the_sources(tmp_path: Path) -> None:
    rounds = 12  # with small batches, whose variance cost six points and more where penalties included it
    results = fedhess.run(
        domains="IconPACS",
        target="sketch",
        strategy=["erm", "hgp", "hutchinson"],
        trials=1,
        rounds=rounds,
        evaluate_every=rounds,
        batch_size=6,
        out=tmp_path / "run",
    )
    rows = results.rows
    last = rows[(rows["round"] == rounds) & (rows["role"] == "source")]
    shares = last["examples"] / last.groupby("strategy")["examples"].transform("sum")
    accuracy = (last["accuracy"] * shares).groupby(last["strategy"]).sum()
    distances = last.groupby("strategy")[["gradient_distance", "hgp_distance"]].mean()
    examples = last.groupby("strategy")["examples"].sum()["erm"]
    error = (accuracy["erm"] * (1 - accuracy["erm"]) / examples) ** 0.5
    for strategy in ("hgp", "hutchinson"):
        assert accuracy[strategy] >= accuracy["erm"] - error
        assert (distances.loc[strategy] < 0.85 * distances.loc["erm"]).all()
