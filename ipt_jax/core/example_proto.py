"""``tf.train.Example`` as a protobuf class built at run time: no TensorFlow, no generated code."""

import functools
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory


@functools.cache
def example_class() -> type[message.Message]:
    """tf.train.Example in a pool of our own, so that TensorFlow beside us does not clash."""
    field_type = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="ipt_jax/example.proto", package="tensorflow", syntax="proto3"
    )

    def add(parent: Any, name: str, number: int, kind: int, **more: Any) -> None:
        parent.field.add(name=name, number=number, type=kind, **{"label": 1, **more})

    for name, kind in (("BytesList", 12), ("FloatList", 2), ("Int64List", 3)):
        add(file.message_type.add(name=name), "value", 1, kind, label=3)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, name in enumerate(("BytesList", "FloatList", "Int64List"), start=1):
        add(
            feature,
            name.replace("List", "_list").lower(),
            number,
            field_type.TYPE_MESSAGE,
            type_name=f".tensorflow.{name}",
            oneof_index=0,
        )
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    add(entry, "key", 1, field_type.TYPE_STRING)
    add(entry, "value", 2, field_type.TYPE_MESSAGE, type_name=".tensorflow.Feature")
    add(
        features,
        "feature",
        1,
        field_type.TYPE_MESSAGE,
        type_name=".tensorflow.Features.FeatureEntry",
        label=3,
    )
    example = file.message_type.add(name="Example")
    add(
        example,
        "features",
        1,
        field_type.TYPE_MESSAGE,
        type_name=".tensorflow.Features",
    )
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))


def features_of(data: bytes) -> dict[str, Any]:
    """The features of a serialised example; one that holds a single value gives that value.

    Raises DecodeError (google.protobuf.message) where ``data`` is none.
    """
    made: Any = example_class()
    return {key: _value(value) for key, value in made.FromString(data).features.feature.items()}


def _value(feature: Any) -> Any:
    kind = feature.WhichOneof("kind")
    values = list(getattr(feature, kind).value) if kind else []
    if kind == "bytes_list":
        values = [_decoded(value) for value in values]
    return values[0] if len(values) == 1 else values


def _decoded(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value  # an image, say; as a text it is refused where it is used as one
