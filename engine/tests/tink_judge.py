"""tink_judge.py KEY CONTEXT DIR: Tink opens DIR/ours into DIR/opened, and seals that again as DIR/theirs."""
import sys
from pathlib import Path
import tink
from tink import cleartext_keyset_handle, streaming_aead
from tink.proto import aes_gcm_hkdf_streaming_pb2, common_pb2, tink_pb2

key, context, folder = bytes.fromhex(sys.argv[1]), bytes.fromhex(sys.argv[2]), Path(sys.argv[3])
streaming_aead.register()
parameters = aes_gcm_hkdf_streaming_pb2.AesGcmHkdfStreamingParams(
    ciphertext_segment_size=1 << 20, derived_key_size=32, hkdf_hash_type=common_pb2.SHA256)
proto = aes_gcm_hkdf_streaming_pb2.AesGcmHkdfStreamingKey(version=0, params=parameters, key_value=key)
data = tink_pb2.KeyData(type_url="type.googleapis.com/google.crypto.tink.AesGcmHkdfStreamingKey",
                        value=proto.SerializeToString(), key_material_type=tink_pb2.KeyData.SYMMETRIC)
keyset = tink_pb2.Keyset(primary_key_id=1)
keyset.key.add(key_data=data, status=tink_pb2.ENABLED, key_id=1, output_prefix_type=tink_pb2.RAW)
primitive = cleartext_keyset_handle.from_keyset(keyset).primitive(streaming_aead.StreamingAead)

with primitive.new_decrypting_stream((folder / "ours").open("rb"), context) as source:
    opened = source.read()
(folder / "opened").write_bytes(opened)
target = (folder / "theirs").open("wb")
with primitive.new_encrypting_stream(target, context) as sink:
    sink.write(opened)
