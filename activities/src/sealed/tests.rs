use super::*;

fn owner() -> SealedFor {
    SealedFor { project: "0123456789abcdef".parse().unwrap(), reference: "s-1".parse().unwrap() }
}

fn content() -> Sealed {
    let mut sealed = Sealed::default();
    sealed.registry_auth.insert(
        "ghcr.io".into(),
        Credential::Password { username: "jo".into(), password: Hidden::new("canary-password") },
    );
    sealed
        .registry_auth
        .insert("docker.io".into(), Credential::IdentityToken { identity_token: Hidden::new("canary-identity") });
    sealed
        .registry_auth
        .insert("r.example:5000".into(), Credential::RegistryToken { registry_token: Hidden::new("canary-token") });
    sealed.secrets.insert("npmrc".into(), SecretBytes::new(*b"canary\0\xff\n"));
    sealed
}

#[test]
fn what_is_sealed_opens_with_the_key_and_only_with_it() {
    let identity = Identity::generate();
    let sealed = seal(&identity.recipient(), &owner(), &content()).unwrap();
    assert!(!String::from_utf8_lossy(&sealed).contains("canary"));
    assert_eq!(open(&identity, &owner(), &sealed).unwrap(), content());
    let error = open(&Identity::generate(), &owner(), &sealed).unwrap_err();
    assert!(matches!(error, OpenError::Decrypt(_)), "{error:?}");
}

#[test]
fn every_altered_or_missing_byte_is_noticed() {
    let identity = Identity::generate();
    let sealed = seal(&identity.recipient(), &owner(), &content()).unwrap();
    for at in 0..sealed.len() {
        let mut altered = sealed.clone();
        altered[at] ^= 1;
        assert!(open(&identity, &owner(), &altered).is_err(), "byte {at} of {} was altered unnoticed", sealed.len());
        assert!(open(&identity, &owner(), &sealed[..at]).is_err(), "cut to {at} bytes unnoticed");
    }
}

#[test]
fn only_their_own_project_and_reference_open_them() {
    let identity = Identity::generate();
    let sealed = seal(&identity.recipient(), &owner(), &content()).unwrap();
    let foreign = SealedFor { project: "fedcba9876543210".parse().unwrap(), ..owner() };
    let renamed = SealedFor { reference: "s-2".parse().unwrap(), ..owner() };
    for other in [foreign, renamed] {
        assert!(matches!(open(&identity, &other, &sealed), Err(OpenError::Foreign)), "{other:?}");
    }
    // As sealed by the versions that did not seal the owner.
    let former = age::encrypt(&identity.recipient().0, &serde_json::to_vec(&content()).unwrap()).unwrap();
    assert!(matches!(open(&identity, &owner(), &former), Err(OpenError::Content)));
}

#[test]
fn the_recipient_travels_as_text() {
    let identity = Identity::generate();
    let recipient: Recipient = identity.recipient().to_string().parse().unwrap();
    assert_eq!(open(&identity, &owner(), &seal(&recipient, &owner(), &content()).unwrap()).unwrap(), content());
    let error = "age1nonsense".parse::<Recipient>().unwrap_err();
    assert_eq!(error.to_string(), r#""age1nonsense" is not a public key: it must be an age x25519 recipient (age1…)"#);
}

#[test]
fn debug_shows_no_value() {
    let identity = Identity::generate();
    let shown = format!("{:?} {:?} {:?}", content(), content().registry_auth, content().secrets);
    assert!(!shown.contains("canary"), "{shown}");
    assert!(shown.contains("ghcr.io") && shown.contains("npmrc"), "{shown}");
    assert!(!format!("{identity:?}").contains("SECRET"), "{identity:?}");
}

#[test]
fn the_json_form_is_the_apis_body() {
    let body = r#"{"registry_auth":{"docker.io":{"identity_token":"canary-identity"},"ghcr.io":{"username":"jo","password":"canary-password"},"r.example:5000":{"registry_token":"canary-token"}},"secrets":{"npmrc":"Y2FuYXJ5AP8K"}}"#;
    assert_eq!(serde_json::from_str::<Sealed>(body).unwrap(), content());
    assert_eq!(serde_json::to_string(&content()).unwrap(), body);
}

#[test]
fn a_secret_that_is_not_base64_is_refused_without_being_quoted() {
    let error = serde_json::from_str::<Sealed>(r#"{"secrets":{"a":"canary!"}}"#).unwrap_err();
    assert!(error.to_string().starts_with("a secret must be base64"), "{error}");
}

#[test]
fn an_identity_file_is_private_and_never_overwritten() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("identity");
    let identity = Identity::generate();
    identity.write(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let sealed = seal(&identity.recipient(), &owner(), &content()).unwrap();
    assert_eq!(open(&Identity::read(&path).unwrap(), &owner(), &sealed).unwrap(), content());
    assert!(matches!(identity.write(&path), Err(KeyError::Write { .. })));
    std::fs::write(dir.path().join("empty"), "# nothing\n").unwrap();
    assert!(matches!(Identity::read(&dir.path().join("empty")), Err(KeyError::Identity { .. })));
    assert!(matches!(Identity::read(&dir.path().join("absent")), Err(KeyError::Read { .. })));
}
