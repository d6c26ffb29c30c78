//! The server's certificate, from a certificate authority of its own.

use std::{net::IpAddr, sync::Arc};

use anyhow::Context;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    },
};

/// What TLS needs on both sides.
pub(crate) struct Tls {
    /// Certificate of the authority, PEM, for the clients.
    pub(crate) ca_pem: String,
    pub(crate) acceptor: TlsAcceptor,
}

/// An authority, and a certificate by it.
pub(crate) struct Signed {
    /// Certificate of the authority, PEM.
    pub(crate) ca_pem: String,
    ca: CertificateDer<'static>,
    certificate: Certificate,
    key: KeyPair,
}

impl Signed {
    /// The certificate and its authority's, PEM.
    pub(crate) fn chain_pem(&self) -> String {
        self.certificate.pem() + &self.ca_pem
    }

    /// The private key, PKCS #8 in PEM.
    pub(crate) fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    /// The public key, PEM.
    pub(crate) fn public_key_pem(&self) -> String {
        self.key.public_key_pem()
    }

    /// For a server of this process.
    pub(crate) fn into_tls(self) -> anyhow::Result<Tls> {
        let Self { ca_pem, ca, certificate, key } = self;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .context("TLS versions")?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone(), ca], key)
            .context("server certificate")?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Tls { ca_pem, acceptor: TlsAcceptor::from(Arc::new(config)) })
    }
}

/// Makes an authority and a certificate for these names and addresses.
pub(crate) fn make(names: &[String], addresses: &[IpAddr]) -> anyhow::Result<Tls> {
    sign(names, addresses)?.into_tls()
}

/// Makes an authority and a certificate, to be written to files or used here.
pub(crate) fn sign(names: &[String], addresses: &[IpAddr]) -> anyhow::Result<Signed> {
    let ca_key = KeyPair::generate()?;
    let mut ca = CertificateParams::new(Vec::new())?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    ca.distinguished_name.push(DnType::CommonName, "kubernetes");
    let ca_certificate = ca.self_signed(&ca_key)?;
    let issuer = Issuer::new(ca, ca_key);

    let key = KeyPair::generate()?;
    let mut server = CertificateParams::new(names.to_vec())?;
    server.distinguished_name.push(DnType::CommonName, "kube-apiserver");
    server.subject_alt_names.extend(addresses.iter().map(|address| SanType::IpAddress(*address)));
    let certificate = server.signed_by(&key, &issuer)?;

    Ok(Signed { ca_pem: ca_certificate.pem(), ca: ca_certificate.der().clone(), certificate, key })
}
