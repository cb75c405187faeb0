//! The guest image as bytes.

use std::fs;

use vm::{Image, ImageError};

use crate::harness::{build_image, image_dir, say};

#[test]
#[ignore = "builds guest images: make test-vm"]
fn the_same_inputs_give_the_same_bytes() {
    let first = image_dir();
    let elsewhere = tempfile::tempdir_in("/var/tmp").unwrap();
    // The packages are the same by their digests; no need to fetch them again.
    let packages = first.parent().unwrap().parent().unwrap().join("packages");
    std::os::unix::fs::symlink(packages, elsewhere.path().join("packages")).unwrap();
    let second = build_image(Some(elsewhere.path()));
    assert_ne!(first, second);
    for file in ["vmlinux", "initrd.zst", "root.erofs", "manifest.json"] {
        let (first, second) = (fs::read(first.join(file)).unwrap(), fs::read(second.join(file)).unwrap());
        assert!(first == second, "{file} differs");
    }
}

#[tokio::test]
#[ignore = "builds guest images: make test-vm"]
async fn only_the_image_that_is_asked_for_is_used() {
    let image = Image::open(image_dir(), None).await.unwrap();
    say(&format!("image {:.1} MB", image.bytes as f64 / 1e6));
    assert!(image.bytes <= 120_000_000);
    assert!(Image::open(image_dir(), Some(&image.digest)).await.is_ok());
    let other = Image::open(image_dir(), Some("sha256:00")).await.unwrap_err();
    assert!(matches!(other, ImageError::OtherImage { .. }), "{other}");
}
