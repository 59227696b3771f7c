// An identity provider that others wrote (`oidc-provider`, certified for OpenID Connect), on a port of
// 127.0.0.1, with one client and the pages of its own for development, on which any login is believed.
// Usage: node identity_provider.mjs PORT REDIRECT_URI
import { Provider } from 'oidc-provider'

const [port, redirectUri] = process.argv.slice(2)

const provider = new Provider(`http://127.0.0.1:${port}`, {
  clients: [
    {
      client_id: 'arkloop',
      client_secret: 'a-secret-of-the-client/with+signs',
      redirect_uris: [redirectUri],
      response_types: ['code'],
      grant_types: ['authorization_code'],
    },
  ],
  // Logging in as bob gives bob@corp.example; a name with `unverified` has an address without proof.
  findAccount: (_context, id) => ({
    accountId: id,
    claims: () => ({
      sub: `sub-of-${id}`,
      email: `${id}@corp.example`,
      email_verified: !id.includes('unverified'),
      preferred_username: id,
    }),
  }),
  claims: { openid: ['sub'], email: ['email', 'email_verified'], profile: ['preferred_username'] },
  pkce: { required: () => true },
  cookies: { keys: ['of no value'] },
  features: { devInteractions: { enabled: true } },
})

provider.listen(Number(port), '127.0.0.1')
