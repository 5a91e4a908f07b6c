"""Networks in the layout of the transformers library: config.json + weights in one folder.

Only the plain numbers of config.json are used (no remote code, no quantisation, no adapters), and
the weights are read as tensors.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import transformers
from transformers.utils import logging as transformers_logging

from medretrieval.embedders.base import TorchEmbedder
from medretrieval.embedders.checkpoint import (
    difference,
    identity_of,
    read_tensors,
    refuse_other_weights,
    weights_file,
)
from medretrieval.embedders.compute import Compute
from medretrieval.embedders.preprocessor_config import preprocessing_of_folder, read_json
from medretrieval.embedders.spec import CONFIG_FILE, EmbedderSpec
from medretrieval.errors import InputError

# Keys of config.json that say how a file was written, not what the network is.
_NOT_ARCHITECTURE = frozenset(
    {"architectures", "dtype", "model_type", "transformers_version", "output_hidden_states"}
)
# Names of layers, which follow from their number, and which of them to give out besides the last.
_NOT_OF_THE_FEATURE = frozenset({"stage_names", "out_features", "out_indices"})

# Parts of the names of entries that only matter while a network is trained, or for its classifier.
_OF_TRAINING = ("drop", "initializer", "id2label", "label2id", "mask_ratio", "loss")

# A counter of training steps and tables of indices: no feature depends on them, and whether a
# file has them depends on the version that wrote it.
_NEVER_USED = ("num_batches_tracked", "position_ids", "relative_position_index")


class FolderEmbedder(TorchEmbedder):
    """Loading shared by the families; a family names its classes and what it does not use.

    Attributes:
        model_type: what config.json must say.
        section: of config.json that describes the network, where it describes others too.
        above_section: entries outside that section which describe the network, if they are there.
        prefix: of the tensors' names in files saved with a head.
        unused: beginnings of the names of tensors that the feature does not depend on; they may
            be there or not, are not loaded, and do not count in `weights_sha256`.
    """

    model_type: ClassVar[str]
    section: ClassVar[str | None] = None
    above_section: ClassVar[tuple[str, ...]] = ()
    config_class: ClassVar[type[transformers.PreTrainedConfig]]
    model_class: ClassVar[type[transformers.PreTrainedModel]]
    model_options: ClassVar[Mapping[str, Any]] = {}
    prefix: ClassVar[str] = ""
    unused: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def load(cls, spec: EmbedderSpec, location: Path, *, revision: str, compute: Compute) -> Self:
        """Read the folder `location`; `revision` goes into the identity.

        Where the folder holds a preprocessor_config.json, the weights were made with what it says:
        it takes precedence over the specification, a warning names the differences, and the
        identity records what is used.

        Raises:
            InputError: the folder is incomplete, or of another network than `spec` says.
        """
        weights = weights_file(spec, location)
        spec = preprocessing_of_folder(spec, location)
        config = cls._config(spec, location)
        stored = read_tensors(weights)
        tensors = {name: tensor for name, tensor in stored.items() if not cls._unused(name, spec)}
        network = filled(
            cls._model_class(spec),
            config,
            cls._renamed(tensors, spec),
            unused=lambda name: cls._unused(name, spec),
            spec=spec,
            where=weights,
            options=cls.model_options,
        )
        identity = identity_of(spec, tensors, revision, architecture=architecture_of(config))
        return cls(spec, network, identity=identity, compute=compute)

    @classmethod
    def _model_class(cls, spec: EmbedderSpec) -> type[transformers.PreTrainedModel]:
        return cls.model_class

    @classmethod
    def _unused(cls, name: str, spec: EmbedderSpec) -> bool:
        return never_used(name) or name.removeprefix(cls.prefix).startswith(cls.unused)

    @classmethod
    def _renamed(
        cls, tensors: Mapping[str, torch.Tensor], spec: EmbedderSpec
    ) -> dict[str, torch.Tensor]:
        """The tensors of the file under the names of the network; transformers knows its own."""
        return dict(tensors)

    @classmethod
    def _config(cls, spec: EmbedderSpec, folder: Path) -> transformers.PreTrainedConfig:
        path = folder / CONFIG_FILE
        stored = read_json(path)
        found = stored.get("model_type")
        if found != cls.model_type:
            raise InputError(
                f"{path} describes a network of type {found!r}; "
                f"{spec.name} is of type {cls.model_type!r}: give the folder of {spec.weights}"
            )
        architecture = section_of(stored, cls.section, path)
        architecture |= {name: stored[name] for name in cls.above_section if name in stored}
        config = plain_config(cls.config_class, architecture, path)
        dim = cls._dim(config, spec)
        if dim != spec.dim:
            raise InputError(
                f"{folder} holds a network with {dim}-d features; {spec.name} has "
                f"{spec.dim}-d features: give the folder of {spec.weights}"
            )
        cls._check_input(config, spec, folder)
        return config

    @classmethod
    def _dim(cls, config: Any, spec: EmbedderSpec) -> int:
        """Length of the feature that a network of this configuration gives."""
        return int(config.hidden_size)

    @classmethod
    def _check_input(cls, config: Any, spec: EmbedderSpec, folder: Path) -> None:
        """Raise InputError if the network cannot be fed pictures of the size of `spec`."""


def never_used(name: str) -> bool:
    """Whether `name` is of a tensor that no feature of any network depends on."""
    return name.endswith(_NEVER_USED)


def section_of(stored: Mapping[str, Any], section: str | None, path: Path) -> dict[str, Any]:
    """The part of config.json that describes the network.

    Raises:
        InputError: it has no such part.
    """
    part = stored if section is None else stored.get(section)
    if not isinstance(part, Mapping):
        raise InputError(f"{path} has no {section}; fetch it again")
    return dict(part)


def plain_config(
    config_class: type[transformers.PreTrainedConfig], stored: Mapping[str, Any], path: Path
) -> transformers.PreTrainedConfig:
    """A configuration from those entries of config.json that describe an architecture.

    Raises:
        InputError: the library does not accept them.
    """
    try:
        known = set(config_class().to_dict()) - _NOT_ARCHITECTURE
        return config_class(**{key: value for key, value in stored.items() if key in known})
    except Exception as error:  # the library validates with exceptions of its own
        raise InputError(f"{path} is no usable configuration ({error}); fetch it again") from error


def architecture_of(config: transformers.PreTrainedConfig) -> dict[str, Any]:
    """What a configuration says of the network that is not the default of its class."""
    usual = type(config)().to_dict()
    return {
        key: value
        for key, value in config.to_dict().items()
        if value != usual.get(key)
        and key not in _NOT_ARCHITECTURE | _NOT_OF_THE_FEATURE
        and not any(word in key for word in _OF_TRAINING)
    }


def filled(
    model_class: type[transformers.PreTrainedModel],
    config: transformers.PreTrainedConfig,
    tensors: Mapping[str, torch.Tensor],
    *,
    unused: Callable[[str], bool],
    spec: EmbedderSpec,
    where: object,
    options: Mapping[str, Any],
) -> torch.nn.Module:
    """A network of transformers with exactly `tensors` as its weights, in float32.

    Names of older versions of the library are understood.

    Args:
        unused: whether the network's tensor of a name may be absent.
        where: named in errors.
        options: of the constructor of the network.

    Raises:
        InputError: tensors are missing, not expected, or of another shape; the message lists them.
    """
    with silent_transformers():
        loaded: Any = model_class.from_pretrained(
            None,
            config=config,
            state_dict=dict(tensors),
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **options,
        )
    network, info = loaded
    differs = difference(
        [name for name in info["missing_keys"] if not unused(name)],
        list(info["unexpected_keys"]),
        [
            f"{name} {tuple(found)}, not {tuple(own)}"
            for name, found, own in info["mismatched_keys"]
        ],
    )
    refuse_other_weights(spec, where, differs)
    return network  # type: ignore[no-any-return]


@contextmanager
def silent_transformers() -> Iterator[None]:
    """Keep transformers' loading report and progress bar off stderr: differences are our errors."""
    level = transformers_logging.get_verbosity()
    bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bar:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
