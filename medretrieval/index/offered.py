"""The indexes of this project: where each is published, if it is, and how it is built.

The app, the cards in `index_cards/` and docs/sources.md are made of this table.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from medretrieval.index.sources import SOURCES, Source, Verdict, may_publish_pictures

_EMBEDDER = "efficientnet-lite0"  # comes with a package, so that everybody can search
_ORG = "medretrieval"
_WIDTH = 96


@dataclass(frozen=True, kw_only=True)
class Offered:
    """An index of this project.

    Attributes:
        key: the name of its card's folder.
        title: for people.
        shows: what is in it, in a sentence or two.
        source: key of `sources.SOURCES`.
        part: which part of the source, such as a task; follows the source's title.
        embedder: name of the embedder.
        data: the folder or file of the data set in the recipe; empty for the demo.
        options: of `medretrieval build`, beside those that every recipe has.
        size: the Hub's size category by slices, where it is known.
        revision: commit at which it is published; None as long as it is not.
    """

    key: str
    title: str
    shows: str
    source: str
    part: str = ""
    embedder: str = _EMBEDDER
    data: str = ""
    options: tuple[str, ...] = ()
    size: str | None = None
    revision: str | None = None

    @property
    def published(self) -> bool:
        """Whether it can be opened by its repo id."""
        return self.revision is not None

    @property
    def name(self) -> str:
        """The name of the index, which its repo id and the pseudonyms in it go by."""
        return f"{self.key}-{self.embedder}"

    @property
    def repo(self) -> str:
        """Where it is, or would be, published: a data set of the Hub."""
        return f"{_ORG}/{self.name}"

    @property
    def hub_id(self) -> str:
        """What opens the published index: repo id and commit."""
        return f"{self.repo}@{self.revision}"

    @property
    def origin(self) -> Source:
        """The source of its images."""
        return SOURCES[self.source]

    @property
    def origin_text(self) -> str:
        """The source of its images as its manifest says it."""
        return ", ".join(filter(None, (self.origin.title, self.part)))

    @property
    def _push_options(self) -> list[str]:
        """Where it is not known whether pictures may go along, they do not."""
        return ["--no-images"] if self.pictures.allowed == "unknown" else []

    @property
    def pictures(self) -> Verdict:
        """Whether pictures and masks can be in the published index."""
        return may_publish_pictures(self.origin_text, self.origin.license)

    @property
    def commands(self) -> tuple[str, ...]:
        """The recipe: commands that build it from the data set and publish it."""
        if self.origin.layout is None:
            return (
                "medretrieval demo",
                f'medretrieval push "$(medretrieval demo)" {self.repo}',
            )
        table, index = f"{self.key}.csv", f"{self.key}-index"
        build = [
            *("medretrieval", "build", table, index, "--embedder", self.embedder, *self.options),
            *("--name", self.name, "--source", self.origin_text),
            *("--license", self.origin.license),
        ]
        return (
            shlex.join(["medretrieval", "table", self.origin.layout, self.data, table]),
            shlex.join(build),
            shlex.join(["medretrieval", "push", index, self.repo, *self._push_options]),
        )


_TRAIN = ("--where", "split=train", "--split", "train")

OFFERED: Mapping[str, Offered] = MappingProxyType(
    {
        row.key: row
        for row in (
            Offered(
                key="demo",
                title="Built-in demo",
                shows="Synthetic phantoms of twelve kinds, six of each, with all their structures "
                "annotated: CT, MR, radiographs and angiograms. For trying things out.",
                source="phantoms",
                size="1K<n<10K",
            ),
            Offered(
                key="acdc",
                title="ACDC: cine MR of the heart",
                shows="Short-axis MR of 150 patients at end diastole and end systole: right "
                "ventricle, myocardium and left ventricle.",
                source="acdc",
                data="ACDC/database",
                options=("--keep", "phase", "--keep", "group"),
                size="1K<n<10K",
            ),
            Offered(
                key="msd",
                title="MSD: all ten tasks",
                shows="The annotated CT and MR volumes of the ten tasks of the Medical "
                "Segmentation Decathlon, a volume for each protocol of multi-protocol MR.",
                source="msd",
                data="MSD",
                options=("--keep", "task", "--keep", "protocol", "--split", "train"),
            ),
            Offered(
                key="msd-heart",
                title="MSD Task02: left atrium, MR",
                shows="20 MR volumes of the heart with the left atrium.",
                source="msd",
                part="Task02_Heart",
                data="Task02_Heart",
                options=("--split", "train"),
                size="1K<n<10K",
            ),
            Offered(
                key="msd-hippocampus",
                title="MSD Task04: hippocampus, MR",
                shows="260 MR volumes cropped to the hippocampus, with its anterior and posterior "
                "part.",
                source="msd",
                part="Task04_Hippocampus",
                data="Task04_Hippocampus",
                options=("--split", "train"),
                size="1K<n<10K",
            ),
            Offered(
                key="msd-prostate",
                title="MSD Task05: prostate, MR",
                shows="32 MR volumes of the prostate with its zones, each as T2 and as ADC.",
                source="msd",
                part="Task05_Prostate",
                data="Task05_Prostate",
                options=("--keep", "protocol", "--split", "train"),
                size="1K<n<10K",
            ),
            Offered(
                key="msd-liver",
                title="MSD Task03: liver and tumours, CT",
                shows="131 CT volumes of the abdomen with the liver and tumours in it.",
                source="msd",
                part="Task03_Liver",
                data="Task03_Liver",
                options=("--split", "train"),
                size="10K<n<100K",
            ),
            Offered(
                key="msd-spleen",
                title="MSD Task09: spleen, CT",
                shows="41 CT volumes of the abdomen with the spleen.",
                source="msd",
                part="Task09_Spleen",
                data="Task09_Spleen",
                options=("--split", "train"),
                size="1K<n<10K",
            ),
            Offered(
                key="totalsegmentator-ct",
                title="TotalSegmentator: whole body, CT",
                shows="CT studies of all parts of the body with up to 117 structures: organs, "
                "bones, muscles and vessels.",
                source="totalsegmentator",
                data="Totalsegmentator_dataset_v201",
                options=("--keep", "study_type", *_TRAIN),
            ),
            Offered(
                key="totalsegmentator-mri",
                title="TotalSegmentator: whole body, MR",
                shows="MR studies of many sequences and parts of the body with up to 50 "
                "structures.",
                source="totalsegmentator-mri",
                data="TotalsegmentatorMRI_dataset_v200",
                options=("--keep", "study_type"),
            ),
            Offered(
                key="radimagenet",
                title="RadImageNet: CT, MR and ultrasound by finding",
                shows="Single images of CT, MR and ultrasound, each with a finding as its label; "
                "no masks. Which images are of one patient is not known.",
                source="radimagenet",
                data="RadImageNet",
                options=(*_TRAIN, "--float16"),
                size="1M<n<10M",
            ),
            Offered(
                key="organamnist",
                title="OrganAMNIST: single organs on axial CT",
                shows="Pictures of 224 by 224 pixels, each cropped to one of eleven organs, which "
                "is its label; no masks. Which pictures are of one patient is not known.",
                source="medmnist",
                part="OrganAMNIST",
                data="organamnist_224.npz",
                options=_TRAIN,
                size="10K<n<100K",
            ),
        )
    }
)


def published() -> list[Offered]:
    """The indexes that can be opened by their repo id."""
    return [row for row in OFFERED.values() if row.published]


def wrapped(command: str) -> str:
    """A command on lines that a page can show, broken before options.

    >>> print(wrapped("medretrieval build acdc.csv acdc-index --name a"))
    medretrieval build acdc.csv acdc-index --name a
    """
    lines = [""]
    for piece in command.split(" --"):
        part = f" --{piece}" if lines != [""] else piece
        if lines[-1] and len(lines[-1]) + len(part) > _WIDTH:
            lines.append("   ")
        lines[-1] += part
    return " \\\n".join(lines)
