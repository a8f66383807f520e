-- Who holds a lease. KEYS: lease. ARGV: ttl in ms.
-- A clock that was set back makes it last beyond its ttl, and nobody may be there to renew it: it is cut.
if redis.call('PTTL', KEYS[1]) > tonumber(ARGV[1]) then
  redis.call('PEXPIRE', KEYS[1], ARGV[1])
end
return redis.call('HGET', KEYS[1], 'owner')
