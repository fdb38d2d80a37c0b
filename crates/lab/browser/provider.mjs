// An identity provider on this host: node provider.mjs PORT CALLBACK. Any name and
// password log in; NAME@example.com is the verified address, and "engineering" a group.
import { Provider } from 'oidc-provider';

const [port, callback] = process.argv.slice(2);
const provider = new Provider(`http://127.0.0.1:${port}`, {
  clients: [{ client_id: 'warren', client_secret: 'a+b/c=', redirect_uris: [callback] }],
  scopes: ['openid', 'profile', 'email', 'groups'],
  claims: {
    openid: ['sub'],
    email: ['email', 'email_verified'],
    profile: ['name', 'preferred_username'],
    groups: ['groups'],
  },
  findAccount: (_context, name) => ({
    accountId: name,
    claims: () => ({
      sub: name,
      email: `${name}@example.com`,
      email_verified: true,
      name: `${name} of the lab`,
      preferred_username: name,
      groups: ['engineering'],
    }),
  }),
  pkce: { required: () => true },
  cookies: { keys: ['only in the lab'] },
});
provider.listen(Number(port), '127.0.0.1', () => console.log('listening'));
