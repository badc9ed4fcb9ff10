//! A Kerberos realm in a guest: its KDC, the appliance's key, and a host that takes part in it. Commands, to be run as root on
//! an initiator; running them again changes nothing.

/// The realm `EXAMPLE.COM`. In the directory where it is run: `storage.keytab`, the appliance's key, and the same as text
/// in `storage.key`. The users `root` and `alice` have the password `secret`; the host calls itself `share-0`, and finds the
/// appliance as `storage.example.com` at its first address.
pub const SET_UP: &str = r#"hostname share-0
grep -q storage.example.com /etc/hosts || echo '10.77.1.1 storage.example.com' >>/etc/hosts
cat >/etc/krb5.conf <<'END'
[libdefaults]
    default_realm = EXAMPLE.COM
    dns_lookup_kdc = false
    dns_lookup_realm = false
    dns_canonicalize_hostname = false
    rdns = false
[realms]
    EXAMPLE.COM = {
        kdc = 127.0.0.1
    }
[domain_realm]
    .example.com = EXAMPLE.COM
END
# So that root has the ticket that it took, and not its machine's.
mkdir -p /etc/nfs.conf.d /var/lib/krb5kdc /etc/krb5kdc
printf '[gssd]\nuse-machine-creds=0\n' >/etc/nfs.conf.d/gssd.conf
set -e
if [ ! -e /var/lib/krb5kdc/principal ]; then
    kdb5_util create -s -r EXAMPLE.COM -P secret
    kadmin.local -q 'addprinc -pw secret root'
    kadmin.local -q 'addprinc -pw secret alice'
    kadmin.local -q 'addprinc -randkey host/share-0.example.com'
    kadmin.local -q 'addprinc -randkey nfs/storage.example.com'
fi >/dev/null
[ -e /etc/krb5.keytab ] || kadmin.local -q 'ktadd -norandkey -k /etc/krb5.keytab host/share-0.example.com' >/dev/null
[ -e storage.keytab ] || kadmin.local -q 'ktadd -norandkey -k storage.keytab nfs/storage.example.com' >/dev/null
base64 -w0 storage.keytab >storage.key
systemctl start krb5-kdc rpc-gssd
echo secret | kinit root >/dev/null
"#;
