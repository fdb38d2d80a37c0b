//! A file has the old or the new content, also when the disk is full.

use crate::support::{in_mount_namespace, mount};
use warren_host::atomic_file::write_atomic;

#[test]
fn a_full_disk_leaves_the_old_content_and_no_litter() {
    in_mount_namespace(|| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_str().unwrap();
        mount("none", path, "tmpfs", 0, "size=64k").unwrap();
        let state = folder.path().join("state.json");
        write_atomic(&state, b"old", 0o600).unwrap();

        let error = write_atomic(&state, &[b'n'; 256 * 1024], 0o600).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
        assert!(error.to_string().contains("state.json"), "{error}");
        assert_eq!(std::fs::read(&state).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);

        write_atomic(&state, b"new", 0o600).unwrap();
        assert_eq!(std::fs::read(&state).unwrap(), b"new");
    });
}
