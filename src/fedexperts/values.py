"""What the fields of a ledger's lines are made of: numbers with their bounds, and the objects that stand in lines."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Number = Annotated[float, Field(ge=-1e300, le=1e300)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Names = list[str]
Matrix = list[list[Number]]


class Values(BaseModel):
    """Fields, of a line or of an object in it."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class Scores(Values):
    """What a cluster's task, or a client's, gives without a model, by the task's metric."""

    majority: Annotated[Number | None, "The most frequent answer, or token, of its training data."]
    tfidf: Annotated[Number | None, "A linear model on TF-IDF; null where there is none, as of images."]


class Joules(Values):
    """Joules of a device, the mean over a link's devices."""

    radio_J: Annotated[Number, "Sending and receiving."]
    compute_J: Annotated[Number, "Training, evaluations not counted."]
    idle_J: Annotated[Number, "All other time."]


class Even(Values):
    """A network judged on even shares of all data, like no client's own; fields as in the line around it."""

    accuracy: Annotated[Number, "Over all clients' images."] = 0
    loss: Annotated[Number, "Mean, in nats; of ``one_shot`` alone."] = 0
    accuracy_by_cluster: Annotated[dict[str, Number], "Of each client; of ``one_shot`` alone."] = {}
    macro_f1: Annotated[Number | None, "Over all clients' images."] = None
    macro_auc: Annotated[Number | None, "Over all clients' images; null where no class has one."] = None
    macro_auc_left_out: Annotated[Count, "Classes without an AUC."] = 0
    mean_f1: Annotated[Number | None, "Macro F1, the mean over clients."] = None
    mean_auc: Annotated[Number | None, "Macro AUC, the mean over clients; null where none has one."] = None
    mean_auc_left_out: Annotated[Count, "Clients without an AUC."] = 0
    local_ratio: Annotated[Number, "The share of picks that stay with the client, the mean over clients."] = 0
    personal_accuracy: Annotated[Number | None, "Each client with its own expert alone, over all clients' images."] = None
    accuracy_by_k: Annotated[dict[str, Number], "With other numbers of experts asked."] = {}
    ladder: Annotated[dict[str, dict[str, Number]], "What other gates would give, and what needs no gate, by name."] = {}


class OneShot(Even):
    """Local classifiers averaged once: FedAvg after a single round."""

    even_test: Annotated[Even, "On even shares."] = Even()


class Metrics(Values):
    """A model judged by data, if it was; nothing stands for a default.

    The first six are of every protocol, the next two where clients have experts of their own, the rest of Networked MoE.
    """

    accuracy: Annotated[Number, "Over all samples; of other metrics, or several, the mean of the scores over clusters."] = 0
    loss: Annotated[Number, "Mean over what is judged, in nats."] = 0
    accuracy_by_cluster: Annotated[dict[str, Number], "The score of each link by its metric."] = {}
    metric: Annotated[str, "What the accuracy is."] = "accuracy"
    metric_by_cluster: Annotated[dict[str, str], "The metric of each link, unless all are accuracies."] = {}
    metrics_by_cluster: Annotated[
        dict[str, dict[str, Number | None]],
        "All metrics of each link, where a task has several; null where one cannot be told.",
    ] = {}
    personal_accuracy: Annotated[Number | None, "Each client with its own experts alone, or the global model."] = None
    personal_by_client: Annotated[dict[str, Number], "Each client with its own experts alone, or the global model."] = {}
    macro_f1: Annotated[Number | None, "Over all clients' images."] = None
    macro_auc: Annotated[Number | None, "One-vs-rest, over all clients' images; null where no class has one."] = None
    macro_auc_left_out: Annotated[Count, "Classes without an AUC."] = 0
    mean_f1: Annotated[Number | None, "Macro F1, the mean over clients."] = None
    mean_auc: Annotated[Number | None, "Macro AUC, the mean over clients; null where none has one."] = None
    mean_auc_left_out: Annotated[Count, "Clients without an AUC."] = 0
    accuracy_by_k: Annotated[dict[str, Number], "With other numbers of experts asked."] = {}
    local_ratio: Annotated[Number, "The share of picks that stay with the client, the mean over clients."] = 0
    inference_B: Annotated[Number, "Bytes between clients for one image."] = 0
    routing: Annotated[Matrix, "Of each client the share of picks that go to each expert."] = []
    ladder: Annotated[
        dict[str, dict[str, Number]],
        "On the same experts, on test data: ``random`` picks, the ``central`` gate, ``all`` experts alike, an ``oracle``, a "
        "linear ``probe`` of the latents, and each client's ``majority`` label.",
    ] = {}
    even_test: Annotated[Even, "The same on even shares of all data."] = Even()
    one_shot: Annotated[OneShot, "Local classifiers averaged once, where each client has its own."] = OneShot()
